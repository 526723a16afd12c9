"""train.graph: training steps that are captured once and replayed. Decisions here are pure but for `step_graph` and
`graphed_steps`, which act."""
