"""The node agent: starts and stops the replicas of one machine, within its memory."""
