"""OpenAI's answers as typed objects. Pure: events in, objects out, no Flask and no Redis."""
