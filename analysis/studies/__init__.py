"""One package a notebook: its plan, estimates, figures and words."""
