"""WS /v1/ws: frames in, frames out.

It never formats a chunk itself and never waits on one client while another one is due."""
