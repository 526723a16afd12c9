"""Images with a COCO JSON file of boxes and masks: reading, checking and changing them. May import trainer.data's
files and what they build on; pycocotools and torchvision are imported when they are needed."""
