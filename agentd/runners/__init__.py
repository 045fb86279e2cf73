"""Episodes, routes, guardrails and the safe action: the process between the plants and the policies (DESIGN sections 3 and 8).

`local.LocalRunner` is the daemon's handle; `process` is the runner process, which outlives the daemon.
"""
