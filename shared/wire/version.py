"""The version of the messages between processes: both sides must have the same one."""

VERSION = 5
