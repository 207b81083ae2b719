"""Searches for better parameters of training: trials of one study, shared between processes."""
