"""The life of one hosted agent inside the daemon: episodes in, feedback, watch, proposals, releases, routes out."""
