"""Public helpers for tests of agents, plug-ins and agentd itself: contract suites, scripted services, faults, a clock."""
