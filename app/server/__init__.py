"""gunicorn's side: worker class, client sockets, reload, drain. It never changes a job."""
