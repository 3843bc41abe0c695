"""Named settings to start from: `train.py --recipe NAME`, of which any can still be changed."""

from dataclasses import replace

from tiny_imagenet.config import TrainConfig

BASE = TrainConfig()

BASELINE = replace(BASE, batch_size=256, num_epochs=12, eval_interval=782, summary_interval=391)

# ResNet-18 sees whole images or large squares of them, scaled, in their own colors
RESNET_18 = replace(
    BASE,
    model_name="resnet_18",
    optimizer="muon",
    reg=0.0,
    random_resized_crop=(44, 64),
    saturation=(1.0, 1.0),
    precision="auto",
)

ONE_HOUR = replace(
    RESNET_18,
    batch_size=512,
    num_epochs=8,
    lr=0.1,
    schedule="linear",
    warmup=0.15,
    weight_decay=0.03,
    loss="softmax_smooth_ce",
    crop_size=48,
    image_sizes=10 * (32,) + 3 * (40,) + 3 * (48,),
    summary_interval=40,
    eval_interval=240,
    checkpoint_interval=120,
)

SVM = replace(BASE, loss="svm", reg=1.0, reg_last_only=True)

RECIPES: dict[str, TrainConfig] = {
    "default": BASE,
    # The baselines: larger batches for speed; logistic regression needs a lower learning rate than 2017's
    "logistic_regression": replace(BASELINE, model_name="logistic_regression", lr=0.001),
    "single_layer_nn": replace(BASELINE, model_name="single_layer_nn"),
    # VGG-16 in bfloat16 where that is faster; batches that fill the machine; half of 2017's learning rate per image
    "vgg_16_fast": replace(
        BASE, batch_size=256, lr=0.02, precision="auto", summary_interval=62, eval_interval=500, checkpoint_interval=125
    ),
    # ResNet-18 in one hour, and in two, on two cores: small images first, evaluated on whole ones of 48 or 56 pixels
    "resnet_18_one_hour": ONE_HOUR,
    "resnet_18_two_hours": replace(
        ONE_HOUR,
        num_epochs=13,
        crop_size=56,
        image_sizes=12 * (32,) + 5 * (40,) + 5 * (48,) + 4 * (56,),
        summary_interval=65,
        eval_interval=390,
        checkpoint_interval=195,
    ),
    # 2017's SVM; and its variant that trains a new last layer only, over the features of a cross-entropy run
    "vgg_16_svm": replace(SVM, lr=0.001, hidden_units=(4096, 4096), dropout_layers=1),
    "vgg_16_svm_frozen": replace(SVM, dropout_keep_prob=1.0, init_from="runs/vgg_16/default", freeze_features=True),
    # Your own photos, a few hundred or more: from the pretrained ResNet-18
    "fine_tune": replace(
        RESNET_18,
        config_name="fine_tune",
        init_from="pretrained/resnet_18",
        batch_size=32,
        num_epochs=10,
        lr=0.03,
        schedule="cosine",
        warmup=0.1,
        crop_size=56,
        summary_interval=10,
        eval_interval=0,
    ),
    # A modern VGG-16, for a GPU
    "vgg_16_bn": replace(
        BASE,
        model_name="vgg_16_bn",
        batch_size=128,
        num_epochs=60,
        lr=0.05,
        schedule="cosine",
        warmup=0.05,
        loss="softmax_smooth_ce",
        precision="auto",
        summary_interval=156,
        eval_interval=1563,
    ),
    # The models of 2017 on the sample set, in minutes on two cores
    "demo": replace(BASE, data_dir="sample-data", num_epochs=15, width=0.125, summary_interval=50, eval_interval=150),
}
