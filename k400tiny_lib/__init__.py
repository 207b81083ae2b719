"""Video classification on K400-Tiny: the library behind the entry points of `MLproject`."""
