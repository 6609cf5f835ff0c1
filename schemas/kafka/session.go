package kafka

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"
)

// NewTransactSession is NewClient for a client that consumes in a group and
// commits what it consumed and what it produced in one transaction.
func (c Config) NewTransactSession(clientID string, opts ...kgo.Opt) (*kgo.GroupTransactSession, error) {
	shared, err := c.options(clientID)
	if err != nil {
		return nil, fmt.Errorf("making Kafka session %q: %w", clientID, err)
	}
	session, err := kgo.NewGroupTransactSession(append(shared, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("making Kafka session %q: %w", clientID, err)
	}
	return session, nil
}
