package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/postrider/postrider/loadtest/pipeline"
)

// TestTwoOfEach is P1, P2 and P7 with two routers and two senders that share the
// partitions, one of each killed and, when the other has taken over, started again:
// nothing is lost and nothing counts twice.
func TestTwoOfEach(t *testing.T) {
	more := []string{"--retry-schedule=" + strings.Repeat("1s,", 10), "--audit-insert-timeout=2s"}
	s := start(t, more...)
	router, sender := s.router, s.sender
	other := pipeline.Start(t, "router", join(s.common(), nil, "--instance=router-2")...).WaitReady(t)
	s.startSender(t, "sender-2", append(more, loopback)...)
	s.sender.WaitReady(t)
	all := []*pipeline.Service{router, other, sender, s.sender}

	sends, loads := s.startPairs(t)
	s.waitPairs(t, sends, loads)
	waitWork(t, all)
	for _, service := range []*pipeline.Service{router, sender} {
		service.Kill9(t)
		s.waitPairs(t, sends, loads)
		service.Restart(t)
		service.WaitReady(t)
		s.waitPairs(t, sends, loads)
	}
	waitWork(t, all)

	events := 0
	for i, l := range loads {
		sends[i].ids = l.stop()
		events += len(sends[i].ids)
	}
	t.Logf("%d events", events)
	s.waitEnds(t, events)
	for _, to := range sends {
		s.checkReceived(t, to.hooks, to.ids)
	}
	s.checkDeliveries(t, sends...)
	s.checkAudit(t, s.outcomes(t), events, 1)
}

// startPairs sends events to every partition of events, each bound for one webhook,
// and these are in every partition of deliveries.
func (s *system) startPairs(t *testing.T) (sends []sent, loads []*load) {
	t.Helper()
	for n := 0; len(sends) < partitions; n++ {
		organization := fmt.Sprintf("pair%d", n)
		if partition := len(sends); partitionOf(s.topics.Events, organization) == partition {
			sends = append(sends, sent{hooks: []webhook{s.subscribeIn(t, partition, organization, "/"+organization)}})
			loads = append(loads, s.startLoad(t, organization, 1))
		}
	}
	return sends, loads
}

// waitPairs waits until an event of each load that is accepted from now on has come
// to its webhook, and so through every partition.
func (s *system) waitPairs(t *testing.T, sends []sent, loads []*load) {
	t.Helper()
	from := make([]int, len(loads))
	for i, l := range loads {
		from[i] = l.accepted() + 10 // those before may have been under way
	}
	for i, l := range loads {
		path := sends[i].hooks[0].Path
		pipeline.Wait(t, 2*soon, "a new event at "+path, func() error {
			id, ok := l.id(from[i])
			if !ok {
				return fmt.Errorf("%w: it is not accepted yet", errNotYet)
			}
			for _, r := range s.receiver.Requests(path) {
				if strings.HasPrefix(string(r.Body), `{"id":"`+id+`"`) {
					return nil
				}
			}
			return fmt.Errorf("%w: event %s", errNotYet, id)
		})
	}
}

// waitWork waits until each router and sender has done something since its start.
func waitWork(t *testing.T, all []*pipeline.Service) {
	t.Helper()
	work := regexp.MustCompile(`(?m)^postrider_(router_deliveries_total|sender_attempts_total\{.*"delivered"\}) [1-9]`)
	for i, service := range all {
		pipeline.Wait(t, 2*soon, fmt.Sprintf("work of service %d", i), func() error {
			if !work.MatchString(service.Metrics(t)) {
				return errNotYet
			}
			return nil
		})
	}
}
