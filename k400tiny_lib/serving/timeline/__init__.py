"""What happens when in a long video: spans, their picture, the annotated copy."""
