mkdir -p my_project/my_package
cp examples/own-module/digit_net.py my_project/my_package/
cat > my_project/my_package/__init__.py <<END
from my_package.digit_net import Digits as MyData, Net as MyModule
END
cat > mine.yaml <<END
name: mine
code: {package: ./my_project}
model: {class_path: my_package.MyModule, init_args: {width: 8}}
data: {class_path: my_package.MyData}
norm: {kind: sync_batch}
train: {epochs: 1}
resources: {workers: 2}
END
