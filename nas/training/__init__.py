"""The lean proxy trainer: batches made on the device, a short training without files, one honest mAP at its end."""
