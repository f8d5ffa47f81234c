"""Makes jobs of checked bodies, queues them and acts on them later. It never imports Flask."""
