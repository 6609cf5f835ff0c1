package kafka

import (
	"context"
	"errors"
	"net"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// ErrorLabel says what kind of error err is, for the label of a metric: one of
// "" (none), canceled, timeout, closed, fenced, membership, authorization,
// missing_topic, too_large, out_of_range, leader, busy, unavailable, broker and
// other.
func ErrorLabel(err error) string {
	if err == nil {
		return ""
	}
	for _, kind := range errorKinds() {
		for _, target := range kind.targets {
			if errors.Is(err, target) {
				return kind.label
			}
		}
	}
	var (
		word *kerr.Error
		dial net.Error
	)
	switch {
	case errors.As(err, &word):
		return "broker"
	case errors.As(err, &dial):
		if dial.Timeout() {
			return "timeout"
		}
		return "unavailable"
	default:
		return "other"
	}
}

type errorKind struct {
	label   string
	targets []error
}

// errorKinds is in the order in which they are looked for: an error may wrap
// several, and what a broker said comes before what the client made of it.
func errorKinds() []errorKind {
	return []errorKind{
		{"fenced", []error{kerr.ProducerFenced, kerr.InvalidProducerEpoch, kerr.FencedInstanceID, kerr.TransactionalIDNotFound, kerr.InvalidProducerIDMapping}},
		{"membership", []error{kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.RebalanceInProgress, kerr.StaleMemberEpoch, kerr.FencedMemberEpoch}},
		{"authorization", []error{
			kerr.SaslAuthenticationFailed, kerr.TopicAuthorizationFailed, kerr.GroupAuthorizationFailed,
			kerr.ClusterAuthorizationFailed, kerr.TransactionalIDAuthorizationFailed,
		}},
		{"missing_topic", []error{kerr.UnknownTopicOrPartition, kerr.UnknownTopicID, kerr.InconsistentTopicID}},
		{"too_large", []error{kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.OffsetMetadataTooLarge, kgo.ErrMaxDecompress}},
		{"out_of_range", []error{kerr.OffsetOutOfRange}},
		{"leader", []error{
			kerr.NotLeaderForPartition, kerr.LeaderNotAvailable, kerr.FencedLeaderEpoch, kerr.UnknownLeaderEpoch,
			kerr.OffsetNotAvailable, kerr.ReplicaNotAvailable, kerr.NotEnoughReplicas, kerr.NotEnoughReplicasAfterAppend,
		}},
		{"busy", []error{
			kerr.ConcurrentTransactions, kerr.UnstableOffsetCommit, kerr.CoordinatorLoadInProgress,
			kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.ThrottlingQuotaExceeded,
		}},
		{"timeout", []error{kerr.RequestTimedOut, kgo.ErrRecordTimeout, context.DeadlineExceeded}},
		{"closed", []error{kgo.ErrClientClosed}},
		{"canceled", []error{context.Canceled}},
	}
}
