package history_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/postrider/postrider/loadtest/pipeline"
)

func TestMain(m *testing.M) {
	pipeline.Main(m, pipeline.NoLeaks(
		// fasthttp's clock runs as long as the process; its pools end up to 10 s after their server.
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
	))
}
