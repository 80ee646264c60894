"""One folder a question: plan, estimates, figures and words of a notebook."""
