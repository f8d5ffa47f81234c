"""The channel of this process and the readers that it feeds. It never interprets an event."""
