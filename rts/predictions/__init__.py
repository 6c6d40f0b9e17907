"""When a task will start and finish, by simulations of its queue as it stands, and the route
of least risk.

From what is asked to what is told: :mod:`~rts.predictions.outlook` answers, from a
:class:`~rts.predictions.present.Picture` of the queue (:mod:`~rts.predictions.peek` reads the
broker's messages, by a connection that threads share, :mod:`~rts.predictions.sharing`;
:mod:`~rts.predictions.fleet` reads what Redis tells of the workers), which serves all that ask
at about that time (:mod:`~rts.predictions.reading`);
:mod:`~rts.predictions.forecast` runs many a :class:`~rts.predictions.play.Play` of it, with
runtimes (:mod:`~rts.predictions.draws`) and arrivals (:mod:`~rts.predictions.arrivals`) that
are drawn, workers that take from several queues (:mod:`~rts.predictions.together`) and take
ahead (:mod:`~rts.predictions.lines`), and sums up a
:class:`~rts.predictions.prediction.Prediction`.
"""
