"""Who writes the feedback: one file a source. Each source is a function of the policy's samples to `Feedback`s."""
