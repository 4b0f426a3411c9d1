package main

import (
	"encoding/json"
	"time"

	"github.com/google/uuid"
	"github.com/segmentio/kafka-go"
)

// Event is the envelope of every job; docs/events.md has the contract, docs/contract its JSON Schema.
type Event struct {
	// ID is the identity of the job for ever: sent again under the same one, the job is done once.
	ID         string    `json:"id"`
	Type       string    `json:"type"`
	CampaignID string    `json:"campaign_id,omitempty"`
	Data       any       `json:"data"`
	Timestamp  time.Time `json:"timestamp"`

	// key decides the partition. Nothing relies on it, but it keeps one user's events together.
	key string
}

// EmailJobPayload asks for one mail to one user.
type EmailJobPayload struct {
	Type         string         `json:"type"`
	CampaignID   string         `json:"campaign_id"`
	UserID       string         `json:"user_id"`
	Priority     int            `json:"priority,omitempty"`
	TemplateID   string         `json:"template_id,omitempty"`    // the campaign's enabled one, where absent
	UserRewardID string         `json:"user_reward_id,omitempty"` // of reward_earned
	Milestone    int            `json:"milestone,omitempty"`      // of milestone
	TemplateData map[string]any `json:"template_data,omitempty"`
}

// PositionRecalcJobPayload asks for all positions of a campaign to be recalculated.
type PositionRecalcJobPayload struct {
	CampaignID        string `json:"campaign_id"`
	PointsPerReferral int    `json:"points_per_referral,omitempty"` // the campaign's own, where absent
}

// RewardDeliveryJobPayload asks for the delivery of one user reward.
type RewardDeliveryJobPayload struct {
	UserRewardID string `json:"user_reward_id"`
}

// NewEmailJob is a new event; keep it, and send it again with its id when you do not know whether it arrived.
func NewEmailJob(payload EmailJobPayload) Event {
	return newEvent("job.email."+payload.Type, payload.CampaignID, payload.UserID, payload)
}

// NewPositionRecalcJob is a new event.
func NewPositionRecalcJob(payload PositionRecalcJobPayload) Event {
	return newEvent("job.position.recalculate", payload.CampaignID, payload.CampaignID, payload)
}

// NewRewardDeliveryJob is a new event.
func NewRewardDeliveryJob(payload RewardDeliveryJobPayload) Event {
	return newEvent("job.reward.deliver", "", payload.UserRewardID, payload)
}

func newEvent(eventType, campaignID, key string, data any) Event {
	return Event{
		ID:         uuid.NewString(),
		Type:       eventType,
		CampaignID: campaignID,
		Data:       data,
		Timestamp:  time.Now().UTC(),
		key:        key,
	}
}

// Message is the event as Kafka takes it.
func (event Event) Message() (kafka.Message, error) {
	value, err := json.Marshal(event)
	return kafka.Message{Key: []byte(event.key), Value: value}, err
}
