"""One process with one loaded model: takes jobs, runs the engine, publishes events. It never loads
a second model."""
