"""Reads one job for one client, keeps it going and encodes it. It never imports Flask."""
