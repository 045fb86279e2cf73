"""The optimizers that ask a model, on the core contract: what the daemon runs, and what scripts run through agentd.opto.script."""
