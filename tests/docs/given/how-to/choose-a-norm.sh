cat > job.yaml <<END
name: one-sample
model: {name: resnet, init_args: {depth: 14}}
data: {name: digits, batch_size: 1}
norm: {kind: batch}
resources: {workers: 2}
END
