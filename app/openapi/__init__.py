"""The OpenAPI document, made of the types that validate, at the start and never in a request."""
