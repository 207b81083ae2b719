"""One class per kind of data: frame folders, videos, class folders, the rendered sample."""
