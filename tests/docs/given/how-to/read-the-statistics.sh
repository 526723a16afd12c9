syncnorm submit examples/digits-sync-batch.yaml --set train.epochs=2 --set norm.kind=sync_batch --follow
