"""What happens to every request before and after its view. It has no rule of a model or a job."""
