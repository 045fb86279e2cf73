"""What can be seen of the daemon from outside: metrics, logs, the service manager's notes. Observers; nothing waits for them."""
