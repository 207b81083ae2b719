"""From predictions to a report: views, metrics, calibration, comparison, threshold."""
