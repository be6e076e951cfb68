"""Every default of the package. Imports only the standard library, so that every module can import it."""

from pathlib import Path

# --- The grid of Table 1 (each list is one axis of the sweep) -------------------------------------
LEARNING_RATES = [0.001, 0.0001, 0.1]
EPOCHS = [100, 200, 300]
WEIGHT_DECAYS = [0, 1e-5, 1e-6]

# --- What is trained -------------------------------------------------------------------------------
NETWORKS = ["regressor", "colorizer"]
ACTIVATIONS = ["sigmoid", "tanh"]  # last layer of the Colorizer
ENCODERS = ["regressor", "mobilenet_v2"]  # of the Colorizer

# (offset, scale) of a network's output y: ab = y * scale - offset, and the target is (ab + offset) / scale.
OUTPUT_SCALES = {"sigmoid": (128, 255), "tanh": (0, 128)}
MSE_UNIT = 255  # every reported mse is in units of (ab + 128) / 255, for both activations

# --- The networks ----------------------------------------------------------------------------------
IMAGE_SIZE = 128  # height and width in pixels; six halvings give the 2x2 bottleneck
LAYERS = 6
FEATURE_MAPS = 3  # one number for all six layers, or six numbers on the way down
NAMED_FEATURE_MAPS = {"deep": (32, 64, 128, 256, 256, 512)}
WIDE = 16  # from this many maps on, channels-last memory, bf16 and a second thread make training faster
MAX_FEATURE_MAPS = 4096  # a larger number is a typing error

# --- Training --------------------------------------------------------------------------------------
BATCH_SIZE = 16
AUGMENT_REPEATS = 1  # passes over the training images per epoch; the report's authors used 10
SEED = 0
OPTIMIZER = "adam"
SGD_MOMENTUM = 0.9
DROPOUT = 0.0
SKIP = False
ENCODER_LR = 0.0  # of a pretrained encoder, as a fraction of the learning rate
SCHEDULE = "constant"  # of the learning rate; "cosine" depends on the total number of epochs
WARMUP_STEPS = 0  # steps of linear warm-up
CROP_AREA = 0.6  # a random crop keeps at least this fraction of the area
CROP_ASPECT = 4 / 3  # largest ratio of the sides of a random crop

# The values that --recipe sets. Flags override them. Keys: "epoch" and the fields of TrainConfig.
RECIPES = {
    "report": {},
    "best": {
        "lr": [0.003],
        "epoch": [600],
        "weight_decay": [0],
        "feature_maps": [(16, 32, 64, 64, 64, 64)],
        "skip": [True],
        "schedule": ["cosine"],
        "warmup_steps": [100],
    },
}

# What --init-from sets, in the same form. Flags override it.
FINE_TUNING = {
    "lr": [0.0003],
    "epoch": [30],
    "weight_decay": [0],
    "schedule": ["cosine"],
    "warmup_steps": [20],
}

# --- The study of the feature maps (section 9 of the report) ---------------------------------------
STUDY_FEATURE_MAPS = [3, 4, 5, 6, 7, 8, 9]
STUDY_SEEDS = [0, 1, 2]
# The best number of maps in the report, and the Regressor's mse with it: the authors' program prints an average error
# for the Regressor only.
REPORTED_BEST = (3, 0.000263)

# --- Evaluation ------------------------------------------------------------------------------------
EVALUATION_BATCH = 64  # fixed, so that no result depends on --batch-size

# --- Devices ---------------------------------------------------------------------------------------
DEVICES = ("auto", "cpu", "cuda", "mps")  # mps: the GPU of a Mac

# --- Data ------------------------------------------------------------------------------------------
IMAGES = "data"
SUBSETS = ("train", "val", "test")
SPLIT = (0.8, 0.1, 0.1)  # train, val, test, by the hash of each file's content
VALIDATION_SHARE = 0.1  # of train/, if a folder has train/ and test/ but no val/
LAB_SCALE = 256  # Lab is stored as 16-bit integers in steps of 1/256: 100 -> 25600, +-128 -> +-32768
MAPPED_IMAGES = 1024  # images read before mapped pages are released: about 100 MB
MAX_FILE_BYTES = 1 << 30  # larger files are left out unread
MAX_PIXELS = 128 << 20  # larger pictures are refused as decompression bombs; JPEGs are decoded at a smaller size
LARGE_PIXELS = 32 << 20  # pictures larger than this are decoded one at a time
IMAGE_ENDINGS = frozenset(
    ".avif .bmp .dib .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)
VIDEO_ENDINGS = frozenset(".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
IMAGE_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")

# --- Pictures --------------------------------------------------------------------------------------
TRIPLETS = 8  # test images shown in a triplet picture
MAX_PICTURES = 500  # test images of each run that are written as PNG
DPI = 150

# --- Coloring photographs --------------------------------------------------------------------------
PRETRAINED = Path(__file__).resolve().parent / "pretrained/photos.pt"  # the colorizer that comes with the project
# For a network with a pretrained encoder, which accepts images of other sizes than in training.
PHOTO_SIDE = 256  # pixels of the longer side; chosen on validation photographs
MARGIN = 16  # mirrored pixels around the photograph, at least
MAX_SATURATION = 4.0
MAX_AUTO_SATURATION = 2.0  # a least-squares prediction times 2 has the error of gray

# --- Saving ----------------------------------------------------------------------------------------
SAVE_SECONDS = 60  # a training run saves its state at least this often, and at every snapshot

# --- The page --------------------------------------------------------------------------------------
PORT = 7860  # of app.py, on 127.0.0.1

# --- Several ranks ---------------------------------------------------------------------------------
SYNC_STEPS = 8  # steps between two exchanges of stop requests
RANK_SECONDS = 600  # timeout of a collective operation in training
MAIN_SECONDS = 7 * 86400  # timeout while rank 0 works alone: it reads a million images in hours
FAILURE_SECONDS = 2  # that other ranks give rank 0 to print the reason of a failure
