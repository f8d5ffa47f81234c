"""The queue of a model in Redis: admission, order, leases, recovery. It never runs a job."""
