package process

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// A Stage is a part of a program with a blocking Run, which ends when its context does.
type Stage struct {
	Name string
	Run  func(ctx context.Context) error
}

// Run starts the stages in order and waits until ctx ends or one of them returns, with or without an error (a program that has lost a part must not go on
// half alive). Then it stops them in reverse order: each is cancelled, and has returned, before the one before it is cancelled, so that what a stage relies on outlives it.
// It returns the errors, that of the stage that returned first in front; context.Canceled from a stage that was cancelled is none.
func Run(ctx context.Context, stages ...Stage) error {
	type running struct {
		cancel context.CancelFunc
		done   chan error // has room for the one result, which is read once
	}
	ended := make(chan int, len(stages))
	started := make([]running, 0, len(stages))
	for i, stage := range stages {
		// The stage must outlive ctx until its turn to stop has come.
		stageCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan error, 1)
		started = append(started, running{cancel, done})
		go func() {
			err := stage.Run(stageCtx)
			if stageCtx.Err() != nil && errors.Is(err, context.Canceled) {
				err = nil
			}
			done <- err
			ended <- i
		}()
	}

	first := -1
	select {
	case <-ctx.Done():
	case first = <-ended:
	}
	errs := make([]error, 1, len(stages)+1) // errs[0] is that of the first to return
	for i, stage := range slices.Backward(started) {
		stage.cancel()
		err := <-stage.done
		if err == nil {
			continue
		}
		err = fmt.Errorf("running %s: %w", stages[i].Name, err)
		if i == first {
			errs[0] = err
		} else {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
