"""The views, one module a resource. No rule of their own: parse, dispatch, format."""
