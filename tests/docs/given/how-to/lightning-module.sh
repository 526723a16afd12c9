mkdir -p my_project/my_package
cp examples/own-module/digit_net.py my_project/my_package/
cat > my_project/my_package/__init__.py <<END
from my_package.digit_net import Digits as MyData, Net as MyModule
END
