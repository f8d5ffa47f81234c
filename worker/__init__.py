"""The processes that run models: agents and replicas. They never import `app`."""
