"""Deciding: sequential statistics, the life of a release, and the watch on what serves. Pure: records in, records out."""
