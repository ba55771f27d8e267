"""Which columns each job shows, in the terminal and in the report alike."""

from __future__ import annotations

from tightframe.report.tables import Column, count, exact, millions, number, percent, rough, seconds, size, text

RANKING = (
    Column("model", "Model", text),
    Column("expected_accuracy", "Expected accuracy", percent),
    Column("expected", "95 % interval", percent, interval=True),
    Column("p_best", "Best with chance", percent),
    Column("probe_accuracy", "Ridge probe", percent),
    Column("knn_accuracy", "k-NN", percent),
    Column("nc1", "NC1", number),
    Column("test_accuracy", "Test accuracy", percent),
    Column("source_accuracy", "Source accuracy", percent),
    Column("parameters", "Param. (M)", millions),
    Column("macs", "Mult.–adds (M)", millions),
    Column("images_seen", "Images seen", count),
    Column("seconds", "Time", seconds),
)

SCORES = (
    Column("model", "Model", text),
    Column("nc1", "NC1", number),
    Column("cdnv", "CDNV", number),
    Column("vci", "VCI", number),
    Column("h_score", "H-score", number),
    Column("h_score_shrunk", "H-score shrunk", number),
    Column("logme", "LogME", number),
    Column("leep", "LEEP", number),
    Column("nce", "NCE", number),
    Column("gbc", "GBC", number),
    Column("transrate", "TransRate", number),
    Column("sfda", "SFDA", number),
    Column("ncti", "NCTI", number),
    Column("parc", "PARC", number),
)

QUALITY = (
    Column("score", "Ranked by", text),
    Column("models", "Models", count),
    Column("weighted_tau", "Weighted τ", number),
    Column("weighted_tau_low", "from", number),
    Column("weighted_tau_high", "to", number),
    Column("tau", "Kendall τ", number),
    Column("spearman", "Spearman", number),
    Column("pearson", "Pearson", number),
    Column("regret", "Regret", percent),
    Column("regret_high", "Regret up to", percent),
)

PROBES = (
    Column("layer", "Layer", text),
    Column("dimension", "d", count),
    Column("nc1", "NC1", number),
    Column("ridge_held_out", "Ridge", percent),
    Column("logistic_held_out", "Logistic", percent),
    Column("center_held_out", "Center", percent),
    Column("knn_held_out", "k-NN", percent),
    Column("ridge_test", "Ridge test", percent),
    Column("logistic_test", "Logistic test", percent),
    Column("center_test", "Center test", percent),
    Column("knn_test", "k-NN test", percent),
)

EPISODES = (
    Column("classifier", "Classifier", text),
    Column("shots", "Shots", count),
    Column("accuracy", "Accuracy", percent),
    Column("margin", "± 95 %", percent),
    Column("nc1", "NC1", number),
    Column("nc1_corrected", "NC1 corrected", number),
    Column("nc1_corrected", "NC1 bound", rough, interval=True),
)

EPOCHS = (
    Column("epoch", "Epoch", count),
    Column("train_loss", "Loss", number),
    Column("train_accuracy", "Accuracy", percent),
    Column("nc1", "NC1", number),
    Column("nc2", "NC2", number),
    Column("nc3", "NC3", number),
    Column("test_accuracy", "Test accuracy", percent),
    Column("test_nc1", "Test NC1", number),
    Column("test_nc2", "Test NC2", number),
    Column("test_nc3", "Test NC3", number),
    Column("seconds", "Time", seconds),
)

LAYERS = (
    Column("layer", "Layer", text),
    Column("dimension", "d", count),
    Column("probe_accuracy", "Probe accuracy", percent),
    Column("probe", "95 % interval", percent, interval=True),
    Column("nc1", "NC1", number),
    Column("nc1", "NC1, 95 %", rough, interval=True),
    Column("nc1_corrected", "NC1 corrected", number),
    Column("nc1_corrected", "NC1 corrected, 95 %", rough, interval=True),
    Column("cdnv", "CDNV", number),
    Column("cdnv", "CDNV, 95 %", rough, interval=True),
    Column("cdnv_corrected", "CDNV corrected", number),
    Column("cdnv_corrected", "CDNV corrected, 95 %", rough, interval=True),
    Column("vci", "VCI", number),
    Column("vci_corrected", "VCI corrected", number),
    Column("nc2_etf", "NC2", number),
    Column("numerical_rank", "Numerical rank", number),
)

METHODS = (
    Column("method", "Method", text),
    Column("block", "Block", text),
    Column("validation_accuracy", "Validation accuracy", percent),
    Column("validation", "95 % interval", percent, interval=True),
    Column("test_accuracy", "Test accuracy", percent),
    Column("test", "95 % interval", percent, interval=True),
    Column("train_accuracy", "Train accuracy", percent),
    Column("nc1", "NC1", number),
    Column("trainable_parameters", "Trainable parameters", count),
    Column("trainable_share", "Trainable", percent),
    Column("lr", "Learning rate", exact),
    Column("weight_decay", "Weight decay", exact),
    Column("seconds", "Time", seconds),
    Column("bytes", "Saved", size),
)

EVIDENCE = (
    Column("question", "Question", text),
    Column("statistic", "Statistic", text),
    Column("value", "Value", number),
    Column("value", "95 % interval", number, interval=True),
    Column("units", "Over", text),
    Column("verdict", "Verdict", text),
)

STUDIES_LISTED = (
    Column("name", "Study", text),
    Column("claim", "Claim", text),
    Column("models", "Models", text),
    Column("minutes", "Minutes", count),
)

PREDICTIONS = (
    Column("path", "Image", text),
    Column("predicted", "Class", text),
    Column("probability", "Probability", percent),
)

SAMPLES = (
    Column("path", "Image", text),
    Column("actual", "Is", text),
    Column("predicted", "Said to be", text),
    Column("probability", "Probability", percent),
)

EVALUATION = (
    Column("images", "Images", count),
    Column("accuracy", "Accuracy", percent),
    Column("accuracy", "95 % interval", percent, interval=True),
    Column("balanced_accuracy", "Mean over classes", percent),
    Column("calibration_error", "Calibration error", percent),
    Column("log_loss", "Log-loss", number),
)

CLASSES = (
    Column("class", "Class", text),
    Column("images", "Images", count),
    Column("right", "Right", count),
    Column("accuracy", "Accuracy", percent),
    Column("accuracy", "95 % interval", percent, interval=True),
    Column("predicted", "Times said", count),
)

CONFUSIONS = (
    Column("actual", "Is", text),
    Column("predicted", "Said to be", text),
    Column("count", "Times", count),
    Column("share", "Of the class", percent),
)

MERGED = (
    Column("model", "Model", text),
    Column("format", "Form", text),
    Column("parameters", "Param. (M)", millions),
    Column("bytes", "Weights", size),
    Column("difference", "Logits differ by", number),
)

EXPORTED = (
    Column("model", "Model", text),
    Column("bytes", "File", size),
    Column("images", "Images", count),
    Column("difference", "Probabilities differ by", number),
    Column("same", "Same class", percent),
    Column("opset", "Opset", count),
)

PUSHED = (
    Column("repository", "Repository", text),
    Column("address", "Address", text),
    Column("files", "Files", count),
    Column("bytes", "Sent", size),
)
