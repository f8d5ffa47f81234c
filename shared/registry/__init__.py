"""The registry: records of live replicas and nodes, and of operations, that expire.

It never starts or stops anything.
"""
