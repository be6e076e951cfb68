"""Every default of the package, in one place. Standard library only, so that anything may import it."""

# --- The grid of Table 1 (each list is one axis of the sweep) -------------------------------------
LEARNING_RATES = [0.001, 0.0001, 0.1]
EPOCHS = [100, 200, 300]
WEIGHT_DECAYS = [0, 1e-5, 1e-6]

# --- What is trained -------------------------------------------------------------------------------
NETWORKS = ["regressor", "colorizer"]
ACTIVATIONS = ["sigmoid", "tanh"]  # the last layer of the Colorizer

# What the network's output y means: ab = y * scale - offset, so that the target is (ab + offset) / scale.
OUTPUT_SCALES = {"sigmoid": (128, 255), "tanh": (0, 128)}
MSE_UNIT = 255  # every reported mse is in units of (ab + 128) / 255, whatever the activation

# --- The networks ----------------------------------------------------------------------------------
IMAGE_SIZE = 128  # pixels a side; six halvings give the 2x2 bottleneck
LAYERS = 6
FEATURE_MAPS = 3  # one number for all six layers, or six numbers on the way down
NAMED_FEATURE_MAPS = {"deep": (32, 64, 128, 256, 256, 512)}
WIDE = 16  # from this many maps on, channels-last and bf16 pay, and so does a second thread
MAX_FEATURE_MAPS = 4096  # wider than this is a typing error, not a network

# --- Training --------------------------------------------------------------------------------------
BATCH_SIZE = 16
AUGMENT_REPEATS = 1  # passes over the training images per epoch; the report's authors used 10
SEED = 0
SCHEDULE = "constant"  # of the learning rate; "cosine" looks at the total number of epochs
WARMUP_STEPS = 0  # linear, before the schedule proper
CROP_AREA = 0.6  # a random crop keeps between this share of the area and all of it
CROP_ASPECT = 4 / 3  # ... and is at most this much wider than tall, or taller than wide

# What --recipe sets, unless a flag says otherwise. Keys: the grid's, and any setting of the Trainer.
RECIPES = {
    "report": {},
    "best": {
        "lr": [0.003],
        "epoch": [600],
        "weight_decay": [0],
        "feature_maps": (16, 32, 64, 64, 64, 64),
        "schedule": "cosine",
        "warmup_steps": 100,
    },
}

# --- The study of the feature maps (section 9 of the report) ---------------------------------------
STUDY_FEATURE_MAPS = [3, 4, 5, 6, 7, 8, 9]
STUDY_SEEDS = [0, 1, 2]
REPORTED_BEST = (3, 0.000263)  # the report's number of maps, and its mse

# --- Evaluation ------------------------------------------------------------------------------------
# Fixed, and not the training batch size, so that no figure can depend on --batch-size.
EVALUATION_BATCH = 64

# --- Data ------------------------------------------------------------------------------------------
IMAGES = "data"
SUBSETS = ("train", "val", "test")
SPLIT = (0.8, 0.1, 0.1)  # train, val, test, by the hash of each file's content
VALIDATION_SHARE = 0.1  # of train/, where a folder brings train/ and test/ but no val/
LAB_SCALE = 256  # Lab is stored as 16-bit integers in steps of 1/256: 100 -> 25600, +-128 -> +-32768
MAPPED_IMAGES = 1024  # read from the map before its pages are given back: about 100 MB
MAX_FILE_BYTES = 1 << 30  # a larger "image" is left out unread
MAX_PIXELS = 128 << 20  # a larger picture is taken for a decompression bomb (a JPEG is decoded smaller)
LARGE_PIXELS = 32 << 20  # of larger pictures, one at a time is decoded
IMAGE_ENDINGS = frozenset(
    ".avif .bmp .dib .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)

# --- Pictures --------------------------------------------------------------------------------------
TRIPLETS = 8  # test images shown in a triplet picture
MAX_PICTURES = 500  # test images written as PNG for each run
DPI = 150

# --- Survival --------------------------------------------------------------------------------------
SAVE_SECONDS = 60  # a training run saves itself at least this often, beside at every snapshot

# --- Several ranks -------------------------------------------------------------------------------
AGREE_STEPS = 8  # between two questions to all ranks whether one was asked to stop, or a save is due
RANK_SECONDS = 600  # without an answer in training, after which another rank is taken for dead
CLAIM_SECONDS = 2  # that another rank leaves to rank 0 to say what both may have met with
ALONE_SECONDS = 7 * 86400  # the same while rank 0 works alone, which reads a million images in hours
