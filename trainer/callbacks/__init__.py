"""What happens beside the training step: one callback a concern, none of which changes what is learned."""
