"""The views under /admin. They send commands to agents, and never load anything themselves."""
