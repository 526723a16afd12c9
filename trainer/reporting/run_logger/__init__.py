"""The logger of a user's LightningModule. What the module logs becomes metrics, params, tags and files of its run.

Nothing here waits for MLflow. Metrics go to the spool, all else to a journal with its files, and senders deliver both.
May import: contract, storage and the spool. Lightning's loggers are known to lightning_logger alone.
"""
