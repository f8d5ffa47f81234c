"""Starts, watches and stops the replicas of one machine, within its memory. It loads no engine."""
