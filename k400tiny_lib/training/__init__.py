"""The loop, the schedule, state and resume."""
