"""Steps as commands, and the chain of nested runs that `main` is."""
