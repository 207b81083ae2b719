"""The entry points of the project, one module each."""

# First of all: it notes which process has started this one. Slower imports follow, and a parent
# that dies meanwhile would go unnoticed.
from k400tiny_lib.workflow import signals as signals
