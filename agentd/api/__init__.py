"""The HTTP API under /api/v1 and the status page: what operators and their tools see of the daemon."""
