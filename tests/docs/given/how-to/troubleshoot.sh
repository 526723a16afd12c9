syncnorm show last || syncnorm submit examples/digits-sync-batch.yaml --set train.epochs=1 --follow
